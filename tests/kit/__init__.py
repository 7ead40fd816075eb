"""What the tests of several folders share: models, shards, pages, runs over ranks, servers."""
