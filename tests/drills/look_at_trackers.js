// Opens a run in TensorBoard's and MLflow's own pages, and prints what is not shown there as JSON.
// node look_at_trackers.js BROWSER FOLDER_FOR_SCREENSHOTS '[{"name": …, "url": …, "texts": […]}, …]'
const { chromium } = require("playwright-core");

(async () => {
  const [path, folder, pages] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath: path, args: ["--no-sandbox"] });
  const missing = [];
  for (const { name, url, texts } of JSON.parse(pages)) {
    const view = await (await browser.newContext({ viewport: { width: 1280, height: 1000 } })).newPage();
    await view.goto(url);
    for (const text of texts) {
      const found = view.getByText(text, { exact: true }).locator("visible=true").first();
      await found.waitFor({ timeout: 60000 }).catch(() => missing.push(`${name}: ${text}`));
    }
    await view.waitForTimeout(2000); // charts are drawn after the texts
    await view.screenshot({ path: `${folder}/${name}.png` });
  }
  await browser.close();
  console.log(JSON.stringify(missing));
})();
