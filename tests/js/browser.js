// The few globals that modules of the tab touch while they load; enough for testing their pure functions in node.
globalThis.window ??= /** @type {any} */ (globalThis);
globalThis.location ??= /** @type {any} */ ({ hash: "" });
globalThis.document ??= /** @type {any} */ ({ documentElement: { style: { setProperty() {} } } });
globalThis.matchMedia ??= /** @type {any} */ (() => ({ matches: false, addEventListener() {}, addListener() {}, removeEventListener() {} }));
globalThis.navigator ??= /** @type {any} */ ({ language: "en-US" });
globalThis.devicePixelRatio ??= 1;
globalThis.addEventListener ??= () => {};
globalThis.dispatchEvent ??= () => true;
globalThis.CustomEvent ??= /** @type {any} */ (class {});
