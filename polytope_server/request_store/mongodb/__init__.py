"""The request store on MongoDB: all processes of a deployment, on any number of machines.

Every step is one conditional update of one document, by its id. There are no transactions: what has to be
kept together lies in one document, and what holds among several documents is said by a unique index. Each
part says why that is right, also when the process dies at any line, or an answer is lost:

- `documents`: what a request is in here,
- `admission`: how one comes into the line,
- `changes`: steps, leases, removal,
- `questions`: what is asked, and `schema`: the indexes for that,
- `usage`, `keys`, `operations`: what else is kept,
- `connection`: the client, its time-outs, and its errors.
"""

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.request_store.mongodb.changes import Changes
from polytope_server.request_store.mongodb.keys import Keys
from polytope_server.request_store.mongodb.operations import Operations
from polytope_server.request_store.mongodb.questions import Questions
from polytope_server.request_store.mongodb.usage import UsageRecords

__all__ = ["MongoRequestStore"]


class MongoRequestStore(Changes, Questions, UsageRecords, Keys, Operations):
    """See `polytope_server.request_store.RequestStore`.

    A server that is away when it is opened is waited for by whoever calls a method.

    Raises:
        ConfigurationError: the server is there, and the operator must do something first.
    """

    Config = MongoStoreSection
