"""What the processes of test_worker.py do; TensorFlow is imported in them alone."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.collective import backend
from mnist_ray.collective.ring import Ring
from mnist_ray.models.build import build
from mnist_ray.models.runtime import import_keras
from mnist_ray.sources.formats.shards import read_shard
from mnist_ray.storage.location import Location
from mnist_ray.training import job, worker
from mnist_ray.training.order import Order, split_off


def fit(ring: Ring, folder: Path) -> None:
    """This rank's part of the real training."""
    worker.fit(pickle.loads((folder / "job.pkl").read_bytes()), ring)


def fit_again(ring: Ring, folder: Path) -> None:
    """The same job in another folder, with what lies there."""
    job: job.Job = pickle.loads((folder / "job.pkl").read_bytes())
    worker.fit(replace(job, run=Location.parse(folder)), ring)


def fit_there(ring: Ring, folder: Path) -> None:
    """The same, in the folder, and in a ring that callbacks can ask for."""
    os.chdir(folder)
    backend._ring = Future()
    backend._ring.set_result(ring)
    fit(ring, folder)


def fit_and_cut(ring: Ring, folder: Path) -> None:
    """The whole training, then from some of its checkpoints on, each in a folder of its own."""
    job: job.Job = pickle.loads((folder / "job.pkl").read_bytes())
    worker.fit(job, ring)
    files = sorted((folder / "checkpoints").glob("step-*"))
    for file in sorted({*files[::3], files[-1]}):  # both within epochs and at their ends
        cut = folder / "cuts" / file.name[5:15]
        if ring.rank == 0:
            (cut / "checkpoints").mkdir(parents=True)
            shutil.copy(file, cut / "checkpoints")
        ring.barrier()
        worker.fit(replace(job, run=Location.parse(cut)), ring)


def validate(_: Ring, folder: Path) -> None:
    """The saved model on the rows that the seed holds out, by the definition: so many of each shard's permutation."""
    job: job.Job = pickle.loads((folder / "job.pkl").read_bytes())
    keras = import_keras(job.recipe.precision)
    shards = job.manifest.shards["train"]
    held_out, _kept = split_off([shard.rows for shard in shards], job.config.validation_fraction)
    images, labels = [], []
    for index, shard in enumerate(shards):
        _ids, part, part_labels = read_shard(job.shards, shard, job.manifest.image_shape)
        rows = np.random.default_rng([job.config.seed, index]).permutation(shard.rows)[: held_out[index]]
        images.append(part[rows])
        labels.append(part_labels[rows])
    model = keras.models.load_model(folder / "model" / "classifier.keras", compile=False)
    predictions = np.asarray(model(np.concatenate(images))).argmax(1)
    accuracy = float((predictions == np.concatenate(labels)).mean())
    (folder / "validation.json").write_text(json.dumps({"accuracy": accuracy}))


def plain(_: Ring, folder: Path) -> None:
    """The trivial implementation: one process, one loop over the global batches, Keras' own optimizer and loss."""
    job: job.Job = pickle.loads((folder / "job.pkl").read_bytes())
    keras = import_keras(job.recipe.precision)
    import tensorflow as tf

    sizes = tuple(shard.rows for shard in job.manifest.shards["train"])
    order = Order(sizes, job.config.batch_size, job.config.seed)
    parts = [
        read_shard(job.shards, job.manifest.shards["train"][index], job.manifest.image_shape)
        for index in order.owned(0, 1)
    ]
    images, labels = (np.concatenate([part[which] for part in parts]) for which in (1, 2))
    model = build(job.recipe)
    optimizer = keras.optimizers.Adam(job.config.learning_rate)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    optimizer.build(model.trainable_variables)
    losses = []
    for epoch in range(job.config.epochs):
        rows = order.indices(epoch, 0, 1)
        total = 0.0
        for start in range(0, len(rows), order.batch_size):
            batch = rows[start : start + order.batch_size]
            total += float(step(images[batch], labels[batch])) * len(batch)
        losses.append(total / len(rows))
    np.savez(folder / "plain.npz", *model.get_weights(), losses=np.array(losses))
