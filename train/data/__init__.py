"""Training samples: aligned crops of images and masks, streamed from stores, and the cache of decoded images."""
