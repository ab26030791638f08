"""The policy of a bucket whose objects everybody may read, but not list."""

import json
from typing import Any, Final

from polytope_server.errors import BackendUnavailable
from polytope_server.staging.s3.calls import Calls, Refusal

_SID: Final = "PolytopeResults"


def allow_reading(calls: Calls, *, prefix: str) -> None:
    """Let everybody read our objects. What else stands in the policy stays, and what is there is not written.

    There is no word against listing: what is not allowed is denied, and a denial to everybody is one to us.

    Raises:
        Refusal: the server does not allow it.
        BackendUnavailable
    """
    before = _policy(calls)
    own = {
        "Sid": _SID,
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{calls.bucket}/{prefix}*"],
    }
    others = [each for each in before.get("Statement", []) if each.get("Sid") != _SID]
    if own in before.get("Statement", []):
        return
    after = {"Version": "2012-10-17", **before, "Statement": [*others, own]}
    calls("put_bucket_policy", Policy=json.dumps(after))


def _policy(calls: Calls) -> dict[str, Any]:
    try:
        text = calls("get_bucket_policy")["Policy"]
        policy = json.loads(text)
    except Refusal as exc:
        if exc.code == "NoSuchBucketPolicy":
            return {}
        raise
    except ValueError:
        policy = None
    if not isinstance(policy, dict) or not isinstance(policy.get("Statement", []), list):
        raise BackendUnavailable(
            f"staging: the policy of the bucket {calls.bucket!r} cannot be read, and so not added to; "
            "see staging.s3.should_set_policy"
        )
    return policy
