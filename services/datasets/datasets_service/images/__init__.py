"""Images to records: finding, splitting, decoding and writing them."""
