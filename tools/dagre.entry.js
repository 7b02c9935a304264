// The layout library, apart from the rest because only the worker loads it.
export { Graph, layout } from "@dagrejs/dagre";
