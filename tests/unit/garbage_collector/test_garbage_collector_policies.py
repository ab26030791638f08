"""Which names are ours, and how old an object must be."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from polytope_server.garbage_collector.policies import Ours, old_enough, ours
from polytope_server.request import BINARY, EXTENSIONS, input_name, result_name
from polytope_server.staging import StoredObject

OUR_NAMES = st.one_of(
    st.builds(
        lambda key, attempt, media_type: (str(key), result_name("", str(key), attempt, media_type)),
        st.uuids(),
        st.integers(1, 10**9 - 1),
        st.sampled_from(sorted(EXTENSIONS)),
    ),
    st.builds(
        lambda key, upload: (str(key), input_name("", str(key), upload.hex)), st.uuids(), st.uuids()
    ),
)


def stored(name: str, *, modified_at: float = 0.0) -> StoredObject:
    return StoredObject(name=name, size_bytes=1, modified_at=modified_at)


@given(OUR_NAMES)
def test_every_name_that_we_give_is_read_back(given_name: tuple[str, str]) -> None:
    request_id, name = given_name
    assert [each.request_id for each in ours([stored(name)])] == [request_id]


@given(
    OUR_NAMES,
    st.integers(0, 100),
    st.sampled_from(["", "-", ".", "/", "\n", " ", "0", "g", "A", "é", "٣", "in"]),
    st.booleans(),
)
def test_a_name_with_one_place_changed_is_somebody_elses(
    given_name: tuple[str, str], place: int, other: str, replaces: bool
) -> None:
    _, name = given_name
    at = place % (len(name) + 1)
    changed = name[:at] + other + name[at + replaces :]
    for each in ours([stored(changed)]):
        # then it must be a name that we do give, of another attempt, upload or request
        rest = changed.removeprefix(f"{each.request_id}-")
        assert str(uuid.UUID(each.request_id)) == each.request_id
        if rest.startswith("in-"):
            upload = rest.removeprefix("in-").removesuffix(".bin")
            assert input_name("", each.request_id, uuid.UUID(upload).hex) == changed
        else:
            attempt = int(rest.partition(".")[0])
            assert changed in {
                result_name("", each.request_id, attempt, media_type) for media_type in EXTENSIONS
            }


def test_names_near_to_ours_are_left_alone() -> None:
    key = str(uuid.uuid4())
    upload = uuid.uuid4().hex
    near = [
        key,
        f"{key}.grib",
        f"{key}-0.grib",
        f"{key}-01.grib",
        f"{key}-1.GRIB",
        f"{key}-1.grib.gz",
        f"{key}-1",
        f"{key}-1.grib\n",
        f"x{key}-1.grib",
        f"other/{key}-1.grib",
        f"{key.upper()}-1A.grib",
        f"{key.replace('-', '')}-1.grib",
        f"{key}-in-{upload}",
        f"{key}-in-{upload}.grib",
        f"{key}-in-{upload[:-1]}.bin",
        f"{key}-in-.bin",
    ]
    assert list(ours([stored(name) for name in near])) == []
    assert list(ours([stored(result_name("", key, 1, BINARY))])) != []


@given(st.floats(0, 1e10), st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_an_object_is_old_from_its_age_on(now: float, age_s: float, modified_before: float) -> None:
    each = Ours(object=stored("x", modified_at=now - modified_before), request_id="r")
    is_old = list(old_enough([each], now=now, age_s=age_s)) == [each]
    assert is_old == (now - each.object.modified_at >= age_s)
    if modified_before < 0:
        assert not is_old or age_s == 0, "an object from the future is not old"
