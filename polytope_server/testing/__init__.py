"""The contract suites: what every back-end must do, ours and everybody's. They need ``pytest``.

One module for each abstraction, with a class to subclass whose docstring names the fixtures to give it.
"""

import pytest

# before they are imported, so that what fails in them says what was compared
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{suite}"
        for suite in (
            "authentication",
            "authorization",
            "caching",
            "datasource",
            "queue",
            "request_store",
            "staging",
        )
    )
)
