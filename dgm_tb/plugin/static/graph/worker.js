// Lays out graphs off the page's thread. A file of its own: TensorBoard's policy forbids workers from blobs.

import { layoutTree } from "./layout.js";

self.onmessage = ({ data }) => {
  const { id, root, items, edges } = data;
  try {
    self.postMessage({ id, layout: layoutTree(root, items, edges) });
  } catch (error) {
    self.postMessage({ id, error: `the model could not be laid out: ${error}` });
  }
};
