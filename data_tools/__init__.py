"""Raw image archives -> checked TFRecord data sets in TFDS's own layout."""
