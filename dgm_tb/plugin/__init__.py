"""TensorBoard plugin: reader of recordings, HTTP routes and the tab. Loads neither torch nor lightning."""
