// Opens pages in a real browser, light and dark, on a desktop and on a phone, and prints what is wrong with them as JSON.
// node look_at.js BROWSER PAGE...; REPORT_SCREENSHOTS names a folder for pictures of them.
const { chromium } = require("playwright-core");
const axe = require("fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

async function watched(browser, page, options) {
  const context = await browser.newContext(options);
  const view = await context.newPage();
  const problems = [];
  view.on("console", (message) => problems.push(`console: ${message.text()}`));
  view.on("pageerror", (error) => problems.push(`error: ${error}`));
  view.on("request", (request) => /^(file|data):/.test(request.url()) || problems.push(`asks for ${request.url()}`));
  await view.goto(`file://${page}`);
  return [context, view, problems];
}

(async () => {
  const [path, ...pages] = process.argv.slice(2);
  const pictures = process.env.REPORT_SCREENSHOTS;
  const browser = await chromium.launch({ executablePath: path, args: ["--no-sandbox"] });
  const found = [];
  for (const page of pages) {
    for (const colorScheme of ["light", "dark"]) {
      for (const width of [390, 1280]) {
        // axe itself would be a script that the page's policy forbids
        const [context, view, problems] = await watched(browser, page, { bypassCSP: true, colorScheme, viewport: { width, height: 900 } });
        const beyond = await view.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        if (beyond > 0) problems.push(`${beyond} pixels wider than the screen`);
        if (pictures) await view.screenshot({ path: `${pictures}/${page.split("/").slice(-2).join("-")}-${colorScheme}-${width}.png`, fullPage: true });
        await view.evaluate(() => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
        await view.evaluate(axe);
        const { violations } = await view.evaluate(() => axe.run());
        problems.push(...violations.map((each) => `axe: ${each.id} ${each.nodes[0].html}`));
        found.push(...problems.map((each) => `${page} ${colorScheme} ${width}: ${each}`));
        await context.close();
      }
    }
    const [context, view, problems] = await watched(browser, page, {});
    const button = view.locator("button[data-copies]");
    if (await button.count()) {
      await button.click();
      await view.getByText("Copied").waitFor({ timeout: 5000 }).catch(() => problems.push("the button does not copy"));
    }
    found.push(...problems.map((each) => `${page}: ${each}`));
    await context.close();
  }
  await browser.close();
  console.log(JSON.stringify(found));
})();
