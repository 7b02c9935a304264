// Types of the bundle, for `npm run check` only.
export { Graph, layout } from "@dagrejs/dagre";
