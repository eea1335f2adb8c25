"""Checking a manifest in segments: its index against what its files hold."""

from collections.abc import Iterator

from storage.errors import LayoutError, RowCorruptError
from storage.manifest_index import bucket_key, digest_of, erased_key, segment_key
from storage.name_index import make_buckets
from storage.segment_files import SegmentFiles


def check_index(file: SegmentFiles) -> Iterator[tuple[str, str]]:
    """Compare an index with what its segments and buckets hold: places, and what is wrong there."""
    index = file.index()
    names: list[str] = []
    rows: list[int] = []
    for number, line in enumerate(index.segments):
        try:
            segment = file.segment(index, number, hold=False)
        except (LayoutError, RowCorruptError) as error:
            yield f"{file.folder}/{segment_key(number, line.digest)}", str(error)
            continue
        if line[1:] != (len(segment), segment.num_written, segment.largest_error):
            yield file.key, f"it counts other lines than segment {number} has"
        names += segment.names()
        rows += segment.columns["row"].tolist()
    for number, bucket in enumerate(make_buckets(names, rows, len(index.names))):
        if digest_of(bucket.to_bytes()) != index.names[number]:
            yield file.key, f"bucket {number} of the names lists other units than the rows do"
        try:
            file.bucket(index, number)
        except (LayoutError, RowCorruptError) as error:
            yield f"{file.folder}/{bucket_key(number, index.names[number])}", str(error)
    try:
        if len(file.erased(index)) != index.num_erased:
            yield file.key, "it counts other erased units than are listed"
    except (LayoutError, RowCorruptError) as error:
        yield f"{file.folder}/{erased_key(index.erased)}", str(error)
