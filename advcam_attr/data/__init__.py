"""Files and seeds in; images, labels and masks out."""
