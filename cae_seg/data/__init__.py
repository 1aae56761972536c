"""ADE20K: preparation, manifest, transforms, the demo set."""
