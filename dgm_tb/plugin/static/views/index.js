// The panels in reading order: a new view is one file and one line here.

import { Dynamics } from "./dynamics.js";
import { Findings } from "./findings.js";
import { Loss } from "./loss.js";
import { Model } from "./model.js";
import { Neurons } from "./neurons.js";
import { Samples } from "./samples.js";

/** `area`: the panel's place in the style sheet's grid. */
export const VIEWS = [
  { name: "Findings", area: "findings", view: Findings },
  { name: "Loss", area: "loss", view: Loss },
  { name: "Model", area: "model", view: Model },
  { name: "Dynamics", area: "dynamics", view: Dynamics },
  { name: "Neurons", area: "neurons", view: Neurons },
  { name: "Samples", area: "samples", view: Samples },
];
