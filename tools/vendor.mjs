// Writes dgm_tb/plugin/static/vendor/ from package-lock.json: two bundles, uPlot's style sheet, and LICENSES.txt.
// Run it as `npm ci && npm run vendor`; the same lockfile gives the same bytes.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const target = process.argv[2] ?? join(root, "dgm_tb/plugin/static/vendor"); // a test builds elsewhere and compares

const result = await build({
  absWorkingDir: root,
  entryPoints: { vendor: "tools/vendor.entry.js", dagre: "tools/dagre.entry.js", uPlot: "uplot/dist/uPlot.min.css" },
  outdir: target,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "eof",
  metafile: true,
});

/** Folder of the package that holds an input file, or null for our own entry files. */
function packageFolder(input) {
  const match = input.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//);
  return match ? match[1] : null;
}

// Only packages with bytes in the output: what tree shaking dropped is not shipped.
const shipped = new Set();
for (const output of Object.values(result.metafile.outputs)) {
  for (const [input, { bytesInOutput }] of Object.entries(output.inputs)) {
    const folder = packageFolder(input);
    if (folder && bytesInOutput > 0) shipped.add(folder);
  }
}

// dagre's own release file has graphlib inside, where the metafile cannot see it.
shipped.add("node_modules/@dagrejs/graphlib");

const allowed = new Set(["MIT", "ISC", "Apache-2.0", "BSD-3-Clause"]);
const sections = [...shipped].sort().map((folder) => {
  const { name, version, license, homepage } = JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8"));
  if (!allowed.has(license)) throw new Error(`${name} is under ${license}; ship only ${[...allowed].join(", ")}`);
  const file = readdirSync(join(root, folder)).find((entry) => /^licen[cs]e(\.(md|txt))?$/i.test(entry));
  const text = file ? readFileSync(join(root, folder, file), "utf8").trim() : `License: ${license}`;
  return `${name} ${version} (${license})\n${homepage ?? ""}\n\n${text}\n`;
});

const rule = `\n${"-".repeat(80)}\n\n`;
const intro =
  "vendor.js, dagre.js and uPlot.css in this folder are built by `npm run vendor` from the packages below.\n";
writeFileSync(join(target, "LICENSES.txt"), intro + rule + sections.join(rule));
for (const [file, { bytes }] of Object.entries(result.metafile.outputs)) {
  console.log(`${relative(root, join(root, file))}  ${bytes} bytes`);
}
