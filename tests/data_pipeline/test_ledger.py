from data_pipeline.ledger import batch_digest, combine

KEYS = ["train-000000/000000001", "train-000000/000000002", "train-000001/000000001"]


def test_the_order_of_the_samples_does_not_matter() -> None:
    assert batch_digest(KEYS, [4, 5, 6]) == batch_digest(KEYS[::-1], [6, 5, 4])


def test_parts_add_up_to_the_whole() -> None:
    parts = [batch_digest(KEYS[:1], [4]), batch_digest(KEYS[1:], [5, 6]), batch_digest([], [])]
    assert combine(parts) == batch_digest(KEYS, [4, 5, 6])


def test_every_shard_key_place_and_repetition_counts() -> None:
    digests = {
        batch_digest(KEYS, [4, 5, 6]),
        batch_digest(KEYS, [5, 4, 6]),
        batch_digest(KEYS[:2], [4, 5]),
        batch_digest([KEYS[0], KEYS[0], KEYS[2]], [4, 5, 6]),
        batch_digest([KEYS[0], KEYS[1], "train-000002/000000001"], [4, 5, 6]),
        batch_digest([*KEYS, KEYS[2]], [4, 5, 6, 6]),
    }
    assert len(digests) == 6
    assert all(0 <= digest < 2**64 for digest in digests)


def test_the_digest_is_pinned() -> None:
    assert batch_digest(KEYS, [4, 5, 6]) == PINNED, "metrics of older runs could not be compared any more"


PINNED = 11237954450426576975
