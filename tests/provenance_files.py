"""What the tests ask of every file of results."""

from typing import Any

from crossnorm_ns.provenance import provenance


def assert_provenance(result: dict[str, Any]) -> None:
    """It holds versions, machine and commit of this process."""
    expected = provenance()
    assert {name: result.get(name) for name in expected} == expected
