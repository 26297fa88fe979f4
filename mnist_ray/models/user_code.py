"""The user's own MODULE:FUNCTION as a digest, so that a run notices when its code has changed.

Python files alone are read, and nothing is run. Comments, docstrings and layout do not count, as they change no result.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from mnist_ray.storage.location import sha256


def code_digest(module: str) -> str:
    """sha256 of a module that can be found, and of all modules that it imports from the same folder.

    In a package that is installed, only the modules of that package count.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return sha256(Path(spec.origin).read_bytes()) if spec and spec.origin and Path(spec.origin).is_file() else ""
    file = Path(spec.origin)
    root = file.parents[module.count(".") + (file.name == "__init__.py")]
    is_installed = any(root.is_relative_to(sysconfig.get_path(place)) for place in ("purelib", "platlib", "stdlib"))
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        top = name.partition(".")[0]
        is_users = top == module.partition(".")[0] or not (is_installed or top == "mnist_ray")
        if name not in found and is_users and (file := _file(root, name)).is_file():
            try:
                tree = ast.parse(file.read_bytes())
            except SyntaxError:  # the import will say so
                found[name] = sha256(file.read_bytes())
                continue
            found[name] = _statements(tree)
            pending += _imported(tree, name if file.name == "__init__.py" else name.rpartition(".")[0])
            pending.append(name.rpartition(".")[0])  # the package around it runs, too
    return sha256(repr(sorted(found.items())).encode())


def _file(root: Path, name: str) -> Path:
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def _statements(tree: ast.Module) -> str:
    """The code in one notation, without its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The names of what a module may import; some are not modules but names within them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            yield from (base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names))
