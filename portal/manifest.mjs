// Writes built.json: of which sources the built pages are, so that a test without Node sees drift.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";

const HERE = import.meta.dirname;
const PAGES = join(HERE, "../portal-api/optiinfra/portal_api/pages");
const NOT_BUILT_FROM = new Set(["node_modules", "built.json", "README.md"]);

function digests(root, skipped = new Set()) {
  const found = {};
  for (const entry of readdirSync(root, { recursive: true, withFileTypes: true })) {
    const name = relative(root, join(entry.parentPath, entry.name)).split(sep).join("/");
    if (!entry.isFile() || skipped.has(name.split("/")[0])) continue;
    found[name] = createHash("sha256").update(readFileSync(join(root, name))).digest("hex");
  }
  return Object.fromEntries(Object.entries(found).sort(([a], [b]) => (a < b ? -1 : 1)));
}

const built = { sources: digests(HERE, NOT_BUILT_FROM), pages: digests(PAGES) };
writeFileSync(join(HERE, "built.json"), JSON.stringify(built, null, 1) + "\n");
