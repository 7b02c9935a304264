import assert from "node:assert/strict";
import { test } from "node:test";
import { layoutTree } from "../../dgm_tb/plugin/static/graph/layout.js";
import { ROOT, autoOpen, buildTree, callNumbers, lineage, reveal, visiblePart } from "../../dgm_tb/plugin/static/graph/tree.js";

const node = (id, kind = "module", module = id.split(".").slice(0, -1).join(".")) => ({ id, kind, op: "Linear", module, shape: [1, 2], layer: kind === "module" ? id : "" });
const edge = (pair) => ({ source: pair.split(">")[0], target: pair.split(">")[1] });

/** encoder.0 > encoder.1 > mu, logvar > decoder.a.0 > decoder.a.1 > decoder.b; a skip from encoder.0 to decoder.b. */
const VAE = {
  nodes: [node("x", "input", ""), ...["encoder.0", "encoder.1", "mu", "logvar", "decoder.a.0", "decoder.a.1", "decoder.b"].map((id) => node(id))],
  edges: "x>encoder.0 encoder.0>encoder.1 encoder.1>mu encoder.1>logvar mu>decoder.a.0 logvar>decoder.a.0 decoder.a.0>decoder.a.1 decoder.a.1>decoder.b encoder.0>decoder.b".split(" ").map(edge),
};

/** A chain of `blocks` groups with `size` layers each. */
function chain(blocks, size) {
  const nodes = Array.from({ length: blocks * size }, (_, i) => node(`net.block${Math.floor(i / size)}.${i % size}`));
  return { nodes, edges: nodes.slice(1).map((target, i) => ({ source: nodes[i].id, target: target.id })) };
}

function place(graph, open) {
  const boxes = buildTree(graph);
  const part = visiblePart(boxes, open ?? autoOpen(boxes, new Set(), 1000), graph.edges);
  const isOpen = (box) => part.visible.some((other) => other.parent === box.id);
  const items = part.visible.map((box) => ({ id: box.id, parent: box.parent, isOpen: isOpen(box), width: 100, height: 40 }));
  return { part, items, layout: layoutTree(ROOT, items, part.edges) };
}

test("groups follow the module path, and every layer is in them once", () => {
  const boxes = buildTree(VAE);
  assert.deepEqual(boxes.get("group:decoder").children.map((box) => box.id), ["group:decoder.a", "decoder.b"]);
  assert.deepEqual(boxes.get(ROOT).layers.toSorted(), VAE.nodes.map((n) => n.layer).filter(Boolean).toSorted());
  assert.equal(boxes.get("decoder.a.1").label, "1");
});

test("a group of one child is left out, and the child bears its name", () => {
  const boxes = buildTree({ nodes: [node("a.b.conv"), node("c")], edges: [] });
  assert.equal(boxes.get("a.b.conv").parent, ROOT);
  assert.equal(boxes.get("a.b.conv").label, "a.b.conv");
});

test("a container called twice gives two groups, an activation used twice does not", () => {
  const gan = ["d.0", "d.1", "d.0@1", "d.1@1"].map((id) => node(id, "module", "d"));
  assert.deepEqual([...callNumbers(gan).values()], [0, 0, 1, 1]);
  assert.ok(buildTree({ nodes: gan, edges: [] }).has("group:d@1"));
  const block = ["b.0", "b.relu", "b.1", "b.relu@1"].map((id) => node(id, "module", "b"));
  assert.equal(callNumbers(block).size, 0);
});

test("closed groups stand for what they hold: edges are lifted and none is lost", () => {
  const boxes = buildTree(VAE);
  const { visible, edges } = visiblePart(boxes, new Set([ROOT]), VAE.edges);
  assert.deepEqual(visible.map((box) => box.id), ["x", "group:encoder", "mu", "logvar", "group:decoder"]);
  assert.deepEqual(edges.map((pair) => pair.join(">")).toSorted(), ["group:encoder>group:decoder", "group:encoder>logvar", "group:encoder>mu", "logvar>group:decoder", "mu>group:decoder", "x>group:encoder"]);
});

test("few nodes are visible at first, and those on the way to a finding before others", () => {
  const graph = chain(40, 12);
  const boxes = buildTree(graph);
  const open = autoOpen(boxes, new Set(["net.block33.5"]), 60);
  const { visible } = visiblePart(boxes, open, graph.edges);
  assert.ok(visible.length <= 64 && visible.length > 10, String(visible.length));
  assert.ok(visible.some((box) => box.id === "net.block33.5"));
});

test("revealing a layer opens all its ancestors", () => {
  const boxes = buildTree(VAE);
  assert.deepEqual([...reveal(boxes, new Set([ROOT]), "decoder.a.1")].toSorted(), [ROOT, "group:decoder", "group:decoder.a"].toSorted());
});

test("no two boxes overlap, children lie inside their group, and edges end on their boxes", () => {
  for (const graph of [VAE, chain(6, 5)]) {
    const { items, layout, part } = place(graph);
    const inside = (a, b) => a.x >= b.x - 0.01 && a.y >= b.y - 0.01 && a.x + a.width <= b.x + b.width + 0.01 && a.y + a.height <= b.y + b.height + 0.01;
    const apart = (a, b) => a.x + a.width <= b.x + 0.01 || b.x + b.width <= a.x + 0.01 || a.y + a.height <= b.y + 0.01 || b.y + b.height <= a.y + 0.01;
    for (const item of items) {
      if (item.parent !== ROOT) assert.ok(inside(layout.boxes[item.id], layout.boxes[item.parent]), item.id);
      for (const other of items) {
        if (other.id < item.id && other.parent === item.parent) assert.ok(apart(layout.boxes[item.id], layout.boxes[other.id]), `${item.id} ${other.id}`);
      }
    }
    assert.equal(layout.edges.length, part.edges.length);
    for (const { source, target, points } of layout.edges) {
      const near = ([x, y], box) => x >= box.x - 1 && x <= box.x + box.width + 1 && y >= box.y - 1 && y <= box.y + box.height + 1;
      assert.ok(near(points[0], layout.boxes[source]), `${source} > ${target} begins at its source`);
      assert.ok(near(points[points.length - 1], layout.boxes[target]), `${source} > ${target} ends at its target`);
    }
  }
});

test("the same question gives the same layout", () => {
  assert.deepEqual(place(VAE).layout, place(VAE).layout);
});

test("lineage holds what is up- and downstream and nothing beside", () => {
  const pairs = VAE.edges.map(({ source, target }) => [source, target]);
  const lit = lineage(pairs, "mu");
  assert.ok(lit.has("x\nencoder.0") && lit.has("decoder.a.1\ndecoder.b"));
  assert.ok(!lit.has("encoder.1\nlogvar") && !lit.has("encoder.0\ndecoder.b"));
});
