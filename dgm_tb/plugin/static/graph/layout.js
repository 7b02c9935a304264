// Places the visible part of the model: one layered layout per open group, inner groups first, so that boxes nest and
// opening one group moves only its ancestors. An edge across a group's border passes through a port on it.

import { Graph, layout } from "../vendor/dagre.js";

/** @typedef {import("../types.d.ts").Layout} Layout */
/** @typedef {[number, number]} Point */
/**
 * @typedef {{ id: string, parent: string, isOpen: boolean, width: number, height: number }} Item an open group's size is
 *   that of its heading
 */
/** @typedef {{ width: number, height: number, children: Record<string, Point>, ports: Record<string, number>, routes: Record<string, Point[]> }} Placed */

const HEADING = 20;
const PADDING = 10;
const SPACING = { rankdir: "TB", ranksep: 20, nodesep: 14, edgesep: 10 };

/** @type {Map<string, Placed>} placed groups by content: what did not change is not laid out again */
const memory = new Map();

/**
 * @param {string} root id of the group that holds all
 * @param {Item[]} items groups before their children
 * @param {[string, string][]} edges between leaves
 * @returns {Layout}
 */
export function layoutTree(root, items, edges) {
  const byId = new Map(items.map((item) => [item.id, item]));
  /** @type {Map<string, Item[]>} */
  const children = new Map([[root, []]]);
  for (const item of items) {
    children.get(item.parent)?.push(item);
    if (item.isOpen) children.set(item.id, []);
  }
  const segments = splitEdges(root, byId, edges);
  /** @type {Map<string, Placed>} */
  const placed = new Map();
  for (const group of [...children.keys()].reverse()) {
    const sized = (children.get(group) ?? []).map((item) => ({ ...item, ...(placed.get(item.id) ?? {}), id: item.id }));
    placed.set(group, placeGroup(sized, segments.get(group) ?? [], group === root));
  }
  return assemble(root, items, edges, placed, segments);
}

/**
 * Cuts every edge into one segment per group it runs through.
 *
 * @param {string} root
 * @param {Map<string, Item>} byId
 * @param {[string, string][]} edges
 * @returns {Map<string, Segment[]>}
 */
function splitEdges(root, byId, edges) {
  /** @type {Map<string, Map<string, Segment>>} */
  const segments = new Map();
  const add = (/** @type {string} */ group, /** @type {number} */ edge, /** @type {string | null} */ from, /** @type {string | null} */ to, port = "") => {
    const list = segments.get(group) ?? new Map();
    segments.set(group, list);
    // Edges that share a port share the way between it and the node.
    const key = port ? `${port}\n${from ?? to}` : String(edge);
    const segment = list.get(key) ?? { edges: [], from, to, port };
    list.set(key, segment);
    segment.edges.push(edge);
  };
  const chain = (/** @type {string} */ id) => {
    const path = [id];
    while (path[path.length - 1] !== root) path.push(byId.get(path[path.length - 1])?.parent ?? root);
    return path;
  };
  edges.forEach(([source, target], edge) => {
    const up = chain(source);
    const down = chain(target);
    const meet = up.findIndex((id) => down.includes(id));
    const other = down.indexOf(up[meet]);
    for (let i = 1; i < meet; i++) add(up[i], edge, up[i - 1], null, `out ${source}`);
    add(up[meet], edge, up[meet - 1], down[other - 1]);
    for (let i = 1; i < other; i++) add(down[i], edge, null, down[i - 1], `in ${target}`);
  });
  return new Map([...segments].map(([group, list]) => [group, [...list.values()]]));
}

/** @typedef {{ edges: number[], from: string | null, to: string | null, port: string }} Segment null: the group's border */

/**
 * Lays out the children of one group.
 *
 * @param {(Item & Partial<Placed>)[]} items
 * @param {Segment[]} segments
 * @param {boolean} isRoot
 * @returns {Placed}
 */
function placeGroup(items, segments, isRoot) {
  const key = JSON.stringify([items.map(({ id, width, height }) => [id, width, height]), segments.map(ends), isRoot]);
  const known = memory.get(key);
  if (known) return known;
  const graph = new Graph({ multigraph: true });
  graph.setGraph(SPACING);
  for (const { id, width, height } of items) graph.setNode(`box ${id}`, { width, height });
  const ports = new Set(segments.map((segment) => segment.port).filter(Boolean));
  // Ports hang on one node above or below all others, by heavy edges: they stay at the border.
  for (const port of ports) {
    const isIn = port.startsWith("in ");
    graph.setNode(port, { width: 1, height: 1 });
    graph.setNode(isIn ? "top" : "bottom", { width: 1, height: 1 });
    graph.setEdge(isIn ? "top" : port, isIn ? port : "bottom", { weight: 1000, minlen: 1 }, "port");
  }
  segments.forEach((segment, i) => graph.setEdge(...ends(segment), { weight: 1 }, `segment ${i}`));
  layout(graph);
  const result = measure(graph, items, segments, [...ports], isRoot);
  if (memory.size > 500) memory.clear();
  memory.set(key, result);
  return result;
}

/** @param {Segment} segment @returns {[string, string]} */
function ends({ from, to, port }) {
  return [from === null ? port : `box ${from}`, to === null ? port : `box ${to}`];
}

/** @param {any} graph @param {Item[]} items @param {Segment[]} segments @param {string[]} ports @param {boolean} isRoot @returns {Placed} */
function measure(graph, items, segments, ports, isRoot) {
  const nodes = items.map((item) => ({ item, node: graph.node(`box ${item.id}`) }));
  const routes = segments.map((segment, i) => {
    const [v, w] = ends(segment);
    return /** @type {Point[]} */ (graph.edge({ v, w, name: `segment ${i}` }).points.map((/** @type {any} */ p) => [p.x, p.y]));
  });
  const ys = nodes.flatMap(({ item, node }) => [node.y - item.height / 2, node.y + item.height / 2]);
  const portY = (/** @type {string} */ kind) => ports.filter((port) => port.startsWith(kind)).map((port) => graph.node(port).y);
  const xs = [
    ...nodes.flatMap(({ item, node }) => [node.x - item.width / 2, node.x + item.width / 2]),
    ...ports.map((port) => graph.node(port).x), ...routes.flatMap((route) => route.map(([x]) => x)),
  ];
  const margin = isRoot ? 0 : PADDING;
  const left = Math.min(...xs) - margin;
  const top = Math.min(Math.min(...ys) - (isRoot ? 0 : HEADING + 2), ...portY("in "));
  const right = Math.max(...xs) + margin;
  const bottom = Math.max(Math.max(...ys) + margin, ...portY("out "));
  return {
    width: right - left,
    height: bottom - top,
    children: Object.fromEntries(nodes.map(({ item, node }) => [item.id, [node.x - item.width / 2 - left, node.y - item.height / 2 - top]])),
    ports: Object.fromEntries(ports.map((port) => [port, graph.node(port).x - left])),
    routes: Object.fromEntries(routes.map((route, i) => [i, route.map(([x, y]) => [x - left, y - top])])),
  };
}

/**
 * @param {string} root
 * @param {Item[]} items
 * @param {[string, string][]} edges
 * @param {Map<string, Placed>} placed
 * @param {Map<string, Segment[]>} segments
 * @returns {Layout}
 */
function assemble(root, items, edges, placed, segments) {
  /** @type {Map<string, Point>} */
  const origin = new Map([[root, [0, 0]]]);
  /** @type {Layout["boxes"]} */
  const boxes = {};
  for (const { id, parent, width, height } of items) {
    const [x, y] = origin.get(parent) ?? [0, 0];
    const [dx, dy] = placed.get(parent)?.children[id] ?? [0, 0];
    origin.set(id, [x + dx, y + dy]);
    const size = placed.get(id) ?? { width, height };
    boxes[id] = { x: x + dx, y: y + dy, width: size.width, height: size.height };
  }
  const pieces = edges.map(() => /** @type {{ order: number, points: Point[] }[]} */ ([]));
  const parents = new Map(items.map((item) => [item.id, item.parent]));
  for (const [group, list] of segments) {
    const [x, y] = origin.get(group) ?? [0, 0];
    const depth = depthOf(group, root, parents);
    list.forEach((segment, i) => {
      const points = /** @type {Point[]} */ ((placed.get(group)?.routes[i] ?? []).map(([px, py]) => [px + x, py + y]));
      joinPorts(segment, points, edges[segment.edges[0]], boxes, placed, group === root ? null : boxes[group]);
      if (points.length === 3) points.splice(1, 1); // between neighbouring ranks the bend is only a place for a label
      // On the way up the inner groups come first, on the way down the outer ones, and where they meet in between.
      const order = segment.to === null ? -depth : segment.from === null ? depth : 0;
      for (const edge of segment.edges) pieces[edge].push({ order, points });
    });
  }
  const { width, height } = placed.get(root) ?? { width: 0, height: 0 };
  return {
    width, height, boxes,
    edges: edges.map(([source, target], i) => ({
      source, target,
      points: pieces[i].sort((a, b) => a.order - b.order).flatMap((piece) => piece.points),
    })),
  };
}

/** Moves the ends of a segment onto the ports of the groups it joins and of the group it runs in. */
function joinPorts(
  /** @type {Segment} */ segment, /** @type {Point[]} */ points, /** @type {[string, string]} */ [source, target],
  /** @type {Layout["boxes"]} */ boxes, /** @type {Map<string, Placed>} */ placed, /** @type {import("../types.d.ts").Placed | null} */ own,
) {
  const last = points.length - 1;
  if (last < 0) return;
  const outPort = segment.from && placed.get(segment.from)?.ports[`out ${source}`];
  if (segment.from && outPort !== undefined && outPort !== null) points[0] = [boxes[segment.from].x + Number(outPort), boxes[segment.from].y + boxes[segment.from].height];
  const inPort = segment.to && placed.get(segment.to)?.ports[`in ${target}`];
  if (segment.to && inPort !== undefined && inPort !== null) points[last] = [boxes[segment.to].x + Number(inPort), boxes[segment.to].y];
  if (own && segment.from === null) points[0] = [points[0][0], own.y];
  if (own && segment.to === null) points[last] = [points[last][0], own.y + own.height];
}

/** @param {string} group @param {string} root @param {Map<string, string>} parents */
function depthOf(group, root, parents) {
  let depth = 0;
  for (let at = group; at !== root; at = parents.get(at) ?? root) depth++;
  return depth;
}
