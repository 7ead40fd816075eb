"""Reads samples from tar shards and makes batches of them.

- `order` says which sample each position of the training order names.
- `remote`, `tar_walk`, `index` and `reading` find shards and read bytes from them.
- `samples` turns the bytes of a sample into an image, captions and labels, and finds broken shards and samples.
- `images` holds the image transforms, and `tokenizers` turns captions into token ids.
- `dataset`, `batch`, `loader` and `sequential` make the batches of a training run.
- `worker_watch` says what each data worker is doing.
"""
