"""Images in; everything that the package makes of them, on disk, out."""
