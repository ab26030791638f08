"""Damage to what is well formed: pieces changed, left out, put in, repeated."""

from collections.abc import Sequence

from hypothesis import strategies as st

MOST = 4
"""Pieces that are damaged in one text."""


@st.composite
def damaged(
    draw: st.DrawFn, whole: st.SearchStrategy[bytes], pieces: Sequence[bytes] = ()
) -> bytes:
    """Some bytes of *whole* otherwise; *pieces* are what is put in besides any bytes."""
    data = draw(whole)
    put_in = st.binary(max_size=4) | st.sampled_from([b"\x00", b"\n", b"\xff", *pieces])
    for _ in range(draw(st.integers(0, MOST))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 40)))
        match draw(st.sampled_from(["change", "leave out", "put in", "repeat"])):
            case "change":
                data = data[:begin] + draw(put_in) + data[end:]
            case "leave out":
                data = data[:begin] + data[end:]
            case "put in":
                data = data[:begin] + draw(put_in) + data[begin:]
            case _:
                data = data[:begin] + data[begin:end] * draw(st.integers(2, 5)) + data[end:]
    return data
