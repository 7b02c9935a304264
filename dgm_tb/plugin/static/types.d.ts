// Shapes that travel between the modules, for `npm run check` only. Routes: ../http_api.md.

export type Severity = "error" | "warning" | "info";
export type Direction = "forward" | "backward";
export type SampleSet = "batch" | "abnormal" | "normal";

/** What the reader of the tab looks at; the whole of it is in the URL. */
export interface Selection {
  run: string;
  step: number | null;
  layer: string;
  neurons: number[];
  sample: number | null;
  finding: string;
  quantity: string;
  statistic: string;
}

export interface RunEntry {
  run: string;
  recorded: boolean;
  indexing?: boolean;
  revision?: string;
  first_step?: number | null;
  last_step?: number | null;
  last_wall_time?: number | null;
  ended?: boolean;
  reason?: string | null;
  model?: string;
  findings?: Record<Severity, number>;
}

export interface LayerEntry {
  name: string;
  module: string;
  type: string;
  neurons: number;
  shape: number[];
  has_weights?: boolean;
  contribution?: string | null;
}

export interface RunDetail extends RunEntry {
  layers: LayerEntry[];
  losses: string[];
  statistics: Record<string, string[]>;
  layer_statistics: Record<string, string[]>;
  snapshots: number[];
  finding_snapshots: number[];
  window_steps: number;
  notes: string[];
  gaps: { segment: string; bytes: number; reason: string; after_step: number | null }[];
}

export interface Finding {
  id: string;
  kind: string;
  severity: Severity;
  step: number;
  first_step: number;
  last_step: number;
  module: string;
  modules: string[];
  neurons: number[];
  samples: number[];
  summary: string;
  evidence: Record<string, unknown>;
  advice: string;
  layer: string;
  has_samples: boolean;
}

export interface GraphNode {
  id: string;
  kind: "module" | "op" | "random" | "loss" | "input" | "detach" | "parameter";
  op: string;
  module: string;
  shape: number[];
  layer: string;
  repeats?: number;
}

export interface GraphEdge {
  source: string;
  target: string;
}

export interface ModelGraph {
  nodes: GraphNode[];
  edges: GraphEdge[];
  modules: Record<string, string>;
  layers: LayerEntry[];
  unrecorded: Record<string, string>;
  no_contribution: Record<string, string>;
}

export type Numbers = Float32Array | Float64Array | Int32Array | Uint8Array;

export interface WireArray {
  dtype: string;
  shape: number[];
  values: Numbers;
}

export interface Message {
  header: Record<string, any>;
  arrays: Record<string, WireArray>;
}

/** A model's visible part after collapsing groups: a tree of groups and leaves. */
export interface Box {
  id: string;
  label: string;
  group: boolean;
  open: boolean;
  parent: string | null;
  children: Box[];
  node: GraphNode | null;
  layers: string[];
  size: number;
}

export interface Placed {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Layout {
  width: number;
  height: number;
  boxes: Record<string, Placed>;
  edges: { source: string; target: string; points: [number, number][] }[];
}
