"""Every error of ours, named for who can put it right.

::

    PolytopeError
    ├── UserError                 the user can: the message is written for them
    │   ├── InvalidRequest        what was asked for, or how, is not acceptable
    │   ├── LimitReached          the user has too much going on already
    │   ├── NotAuthenticated      no credentials, or none that were accepted
    │   ├── NotAuthorized         known, but without the role
    │   ├── RequestNotFound       no such request, or not theirs
    │   ├── KeyNotFound           no such API key, or not theirs
    │   ├── CollectionNotFound
    │   ├── PageNotFound          no such path
    │   ├── ResultNotFound        no such download, or a token that is not ours
    │   ├── ResultGone            it was there and has been removed, or the link has expired
    │   ├── Conflict              the request holds other data already
    │   ├── BodyTooLarge
    │   ├── UnsupportedMediaType
    │   └── NotSupported          this server does not do that
    ├── DatasourceFailed          a datasource could not deliver; the message is for the user
    ├── ConfigurationError        the operator can: key, value and what would be right
    ├── BackendUnavailable        time can: a server is away; try again
    │   └── StorageFull           no room left for the bytes; try again later
    ├── OperatorNotAllowed        whoever writes the configuration can: this is no operator of theirs
    ├── StepLost                  nobody needs to: somebody else was first
    └── ObjectNotFound            nothing of that name in staging

This module is a leaf and knows no HTTP.
"""


class PolytopeError(Exception):
    """Root of our errors. The text is one self-contained sentence or more."""


class UserError(PolytopeError):
    """Something the user did; the text says what was wrong and what would be right."""


class InvalidRequest(UserError):
    """What was asked for, or the way it was asked, is not acceptable."""


class LimitReached(UserError):
    """The user has as many requests going as the server allows."""


class NotAuthenticated(UserError):
    """No credentials, or none that were accepted. The text never says which part was wrong."""


class NotAuthorized(UserError):
    """The user is known but may not do this."""


class RequestNotFound(UserError):
    """No such request, or another user's: both look the same, on purpose."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Request {request_id} not found")
        self.request_id = request_id


class KeyNotFound(UserError):
    """No such API key, or another user's: both look the same, on purpose."""


class CollectionNotFound(UserError):
    """No collection of that name is configured."""


class PageNotFound(UserError):
    """No such path."""


class ResultNotFound(UserError):
    """No such download, or a link that this server never gave out."""


class ResultGone(UserError):
    """The result was there and has been removed, or the link to it is too old."""


class Conflict(UserError):
    """The request already holds other data."""


class BodyTooLarge(UserError):
    """A body is over its limit."""


class UnsupportedMediaType(UserError):
    """A body is not declared as what this endpoint reads."""


class NotSupported(UserError):
    """This server, collection or datasource does not do that."""


class DatasourceFailed(PolytopeError):
    """A datasource could not deliver. The text is shown to the user: no paths, hosts or secrets."""


class ConfigurationError(PolytopeError):
    """The configuration cannot be used; the text names key, expected shape and what is possible."""


class BackendUnavailable(PolytopeError):
    """A server behind us is away or too slow. Whether the call has happened is unknown."""


class StorageFull(BackendUnavailable):
    """Staging has no room for these bytes at present."""


class OperatorNotAllowed(PolytopeError):
    """Somebody at the command line whom the configuration does not name among the operators."""


class StepLost(PolytopeError):
    """The request no longer stands where the step starts from. Nothing was written."""


class ObjectNotFound(PolytopeError):
    """Staging holds nothing of that name."""
