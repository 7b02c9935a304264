// From the traced DAG to what is drawn: a tree of groups by module path, of which some are open.

/** @typedef {import("../types.d.ts").ModelGraph} ModelGraph */
/** @typedef {import("../types.d.ts").GraphNode} GraphNode */
/** @typedef {import("../types.d.ts").Box} Box */

export const ROOT = "group:";
const AUTO_VISIBLE = 48;
export const MAX_VISIBLE = 300;

/**
 * The groups and leaves of a graph.
 *
 * A module called several times in one step (a discriminator on real and on fake images) gives one group per call.
 *
 * @param {ModelGraph} graph
 * @returns {Map<string, Box>} by id, the root under `ROOT`
 */
export function buildTree(graph) {
  const calls = callNumbers(graph.nodes);
  /** @type {Map<string, Box>} */
  const groups = new Map([[ROOT, newBox(ROOT, "", null)]]);
  for (const node of graph.nodes) {
    const call = calls.get(node.id) ?? 0;
    const label = nodeLabel(node);
    const isNamedByGroup = call > 0 && label.endsWith(`@${call}`);
    groupOf(groups, node.module, call).children.push(newBox(node.id, isNamedByGroup ? label.replace(/@\d+$/, "") : label, node));
  }
  const root = /** @type {Box} */ (groups.get(ROOT));
  root.open = true;
  root.children = root.children.map(inlineOnlyChild);
  /** @type {Map<string, Box>} */
  const boxes = new Map();
  finish(root, null, boxes);
  return boxes;
}

/** @param {string} id @param {string} label @param {GraphNode | null} node @returns {Box} */
function newBox(id, label, node) {
  return { id, label, node, group: node === null, open: false, parent: null, children: [], layers: node?.layer ? [node.layer] : [], size: 1 };
}

/** A leaf's text: the last part of a module's name, a function's name. @param {GraphNode} node */
function nodeLabel(node) {
  if (node.kind === "module" && !node.layer) return node.op; // not recorded: a number alone would say nothing
  if (node.kind === "module" || node.kind === "parameter") return node.id.slice(node.module ? node.module.length + 1 : 0);
  return node.kind === "input" ? node.id : node.op;
}

/** The group of a module path, made with its ancestors when it is new. @param {Map<string, Box>} groups @param {string} path @param {number} call */
function groupOf(groups, path, call) {
  if (!path) return /** @type {Box} */ (groups.get(ROOT));
  const suffix = call ? `@${call}` : "";
  const id = `${ROOT}${path}${suffix}`;
  let group = groups.get(id);
  if (!group) {
    const at = path.lastIndexOf(".");
    group = newBox(id, path.slice(at + 1) + suffix, null);
    groups.set(id, group);
    groupOf(groups, at < 0 ? "" : path.slice(0, at), call).children.push(group);
  }
  return group;
}

/** A group with a single child says nothing: the child takes its place, under both names. @param {Box} box @returns {Box} */
function inlineOnlyChild(box) {
  box.children = box.children.map(inlineOnlyChild);
  if (!box.group || box.children.length !== 1) return box;
  const [child] = box.children;
  child.label = `${box.label}.${child.label}`;
  return child;
}

/** Fills in parents, layers and sizes, and the index. @param {Box} box @param {string | null} parent @param {Map<string, Box>} boxes */
function finish(box, parent, boxes) {
  box.parent = parent;
  boxes.set(box.id, box);
  for (const child of box.children) finish(child, box.id, boxes);
  if (!box.group) return;
  box.layers = box.children.flatMap((child) => child.layers);
  box.size = box.children.reduce((sum, child) => sum + child.size, 0);
}

/**
 * Node id -> the call of its container it belongs to.
 *
 * A top-level container is taken to be called n times when each of its modules was; a single activation module used
 * twice in one forward is not a second call. Functions carry no call in their name: they belong to that of the
 * module that ran before them.
 *
 * @param {GraphNode[]} nodes
 * @returns {Map<string, number>}
 */
export function callNumbers(nodes) {
  const top = (/** @type {string} */ path) => path.split(".")[0];
  /** @type {Map<string, Map<string, number>>} container -> module -> calls */
  const counts = new Map();
  for (const node of nodes) {
    if (node.kind !== "module" || !node.module) continue;
    const modules = counts.get(top(node.module)) ?? new Map();
    const name = node.id.replace(/@\d+$/, "");
    modules.set(name, (modules.get(name) ?? 0) + 1);
    counts.set(top(node.module), modules);
  }
  /** @type {Map<string, number>} */
  const current = new Map();
  /** @type {Map<string, number>} */
  const calls = new Map();
  for (const node of nodes) {
    const container = top(node.module);
    const modules = counts.get(container);
    const times = modules ? Math.min(...modules.values()) : 1;
    if (times < 2) continue;
    if (node.kind === "module") {
      const name = node.id.replace(/@\d+$/, "");
      const call = Number(node.id.match(/@(\d+)$/)?.[1] ?? 0);
      const perCall = (modules?.get(name) ?? times) / times;
      current.set(container, Math.min(times - 1, Math.floor(call / perCall)));
    }
    calls.set(node.id, current.get(container) ?? 0);
  }
  return calls;
}

/**
 * The groups to open at first: breadth first while few nodes are visible, those on the way to `wanted` layers before.
 *
 * @param {Map<string, Box>} boxes
 * @param {Set<string>} wanted layer names
 * @param {number} [limit]
 * @returns {Set<string>} ids of open groups
 */
export function autoOpen(boxes, wanted, limit = AUTO_VISIBLE) {
  const root = /** @type {Box} */ (boxes.get(ROOT));
  const open = new Set([ROOT]);
  let visible = root.children.length;
  let level = root.children.filter((child) => child.group);
  while (level.length) {
    const order = [...level].sort((a, b) => Number(holds(b, wanted)) - Number(holds(a, wanted)));
    const next = [];
    for (const group of order) {
      if (visible + group.children.length - 1 > limit) continue;
      visible += group.children.length - 1;
      open.add(group.id);
      next.push(...group.children.filter((child) => child.group));
    }
    level = next;
  }
  return open;
}

/** @param {Box} box @param {Set<string>} layers */
function holds(box, layers) {
  return box.layers.some((name) => layers.has(name));
}

/** The open groups with all ancestors of a layer's node opened. @param {Map<string, Box>} boxes @param {Set<string>} open @param {string} layer */
export function reveal(boxes, open, layer) {
  const leaf = [...boxes.values()].find((box) => box.node?.layer === layer);
  const missing = [];
  for (let at = leaf?.parent ?? null; at; at = boxes.get(at)?.parent ?? null) if (!open.has(at)) missing.push(at);
  return missing.length ? new Set([...open, ...missing]) : open;
}

/**
 * The boxes to lay out and the edges between visible leaves (nodes and closed groups).
 *
 * @param {Map<string, Box>} boxes
 * @param {Set<string>} open
 * @param {ModelGraph["edges"]} edges
 * @returns {{ visible: Box[], edges: [string, string][] }} `visible`: open groups before their children
 */
export function visiblePart(boxes, open, edges) {
  /** @type {Box[]} */
  const visible = [];
  /** @type {Map<string, string>} every node -> the visible leaf that stands for it */
  const standIn = new Map();
  const visit = (/** @type {Box} */ box, /** @type {string | null} */ closed) => {
    if (closed === null && box.id !== ROOT) visible.push(box);
    const leaf = closed ?? (box.group && open.has(box.id) ? null : box.id);
    if (leaf !== null && !box.group) standIn.set(box.id, leaf);
    for (const child of box.children) visit(child, leaf);
  };
  visit(/** @type {Box} */ (boxes.get(ROOT)), null);
  /** @type {Map<string, [string, string]>} */
  const lifted = new Map();
  for (const { source, target } of edges) {
    const from = standIn.get(source);
    const to = standIn.get(target);
    if (from && to && from !== to) lifted.set(`${from}\n${to}`, [from, to]);
  }
  return { visible, edges: [...lifted.values()] };
}

/** Everything up- and downstream of a visible leaf. @param {[string, string][]} edges @param {string} from */
export function lineage(edges, from) {
  /** @type {Set<string>} */
  const found = new Set();
  for (const [a, b] of /** @type {[number, number][]} */ ([[0, 1], [1, 0]])) {
    const queue = [from];
    const seen = new Set(queue);
    for (let at = queue.pop(); at !== undefined; at = queue.pop()) {
      for (const edge of edges) {
        if (edge[a] !== at) continue;
        found.add(`${edge[0]}\n${edge[1]}`);
        if (!seen.has(edge[b])) seen.add(edge[b]) && queue.push(edge[b]);
      }
    }
  }
  return found;
}
