"""Reads what fbgemm-sql wrote, by pyarrow and polars, and compares. Usage: check.py vectors|same ARGUMENTS"""

import json
import sys

import polars
import pyarrow as pa
import pyarrow.parquet as pq


def rows(folder):
    table = pq.read_table(folder).combine_chunks()
    return table.sort_by("id")


def vectors(folder, expected):
    """Every vector bit by bit, and null where null is expected: `expected` is JSON, {id: bits or null}."""
    table = rows(folder)
    expected = {int(id): value for id, value in json.load(open(expected)).items()}
    kind = table.schema.field("v").type
    width = len(next(value for value in expected.values() if value is not None))
    assert pa.types.is_fixed_size_list(kind) and kind.list_size == width and kind.value_type == pa.float32(), kind
    found = dict(zip(table["id"].to_pylist(), table["v"].to_pylist()))
    assert found.keys() == expected.keys(), (len(found), len(expected))
    bits = lambda vector: vector and pa.array(vector, pa.float32()).view(pa.uint32()).to_pylist()
    for id, value in expected.items():
        assert bits(found[id]) == value, id
    there = polars.read_parquet(f"{folder}/*.parquet").sort("id")
    assert there.schema["v"] == polars.Array(polars.Float32, width) or there.schema["v"] == polars.List(polars.Float32)
    assert there["v"].null_count() == sum(value is None for value in expected.values())
    assert there["v"].to_list() == table["v"].to_pylist()


def same(one, other):
    one, other = rows(one), rows(other)
    assert one.schema == other.schema, (one.schema, other.schema)
    assert one.num_rows == other.num_rows > 0, (one.num_rows, other.num_rows)
    for column in one.column_names:
        a, b = one[column].combine_chunks(), other[column].combine_chunks()
        a, b = (x.flatten() if pa.types.is_fixed_size_list(x.type) else x for x in (a, b))
        a, b = (x.view(pa.uint32()) if x.type == pa.float32() else x for x in (a, b))
        assert a.equals(b), column


globals()[sys.argv[1]](*sys.argv[2:])
