"""Images from their files to a batch: reading, storing, dividing, augmenting, checking."""
