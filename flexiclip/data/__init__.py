"""Reads samples from tar shards and makes batches of them.

- `order` says which sample each position of the training order names.
- `remote`, `reading`, `tar_walk`, `index` and `members` find shards and read bytes from them.
- `samples` turns the bytes of a sample into an image, captions and labels; `images` holds the image transforms.
- `dataset`, `batch`, `loader` and `sequential` make the batches of a training run.
- `tokenizers` turns captions into token ids.
- `check` reports broken shards and samples; `worker_watch` says what each data worker is doing.
"""
