from tutelage.proto.tutelage.v1 import oracle_pb2 as _oracle_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Segment(_message.Message):
    __slots__ = ("obs", "actions", "recipe", "seed", "prefix", "rewards", "played", "pictures")
    OBS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    PLAYED_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    obs: _oracle_pb2.Tree
    actions: _oracle_pb2.Tree
    recipe: Recipe
    seed: int
    prefix: _oracle_pb2.Tree
    rewards: _oracle_pb2.Tensor
    played: int
    pictures: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, obs: _Optional[_Union[_oracle_pb2.Tree, _Mapping]] = ..., actions: _Optional[_Union[_oracle_pb2.Tree, _Mapping]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., seed: _Optional[int] = ..., prefix: _Optional[_Union[_oracle_pb2.Tree, _Mapping]] = ..., rewards: _Optional[_Union[_oracle_pb2.Tensor, _Mapping]] = ..., played: _Optional[int] = ..., pictures: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("id", "kwargs", "backend", "versions")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KWARGS_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kwargs: str
    backend: str
    versions: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., kwargs: _Optional[str] = ..., backend: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Option(_message.Message):
    __slots__ = ("segment", "text", "state", "json")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    segment: Segment
    text: str
    state: _oracle_pb2.Tree
    json: str
    def __init__(self, segment: _Optional[_Union[Segment, _Mapping]] = ..., text: _Optional[str] = ..., state: _Optional[_Union[_oracle_pb2.Tree, _Mapping]] = ..., json: _Optional[str] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("id", "kind", "options", "context", "priority", "answers_wanted")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ContextValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ContextValue, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_WANTED_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    options: _containers.RepeatedCompositeFieldContainer[Option]
    context: _containers.MessageMap[str, ContextValue]
    priority: float
    answers_wanted: int
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., options: _Optional[_Iterable[_Union[Option, _Mapping]]] = ..., context: _Optional[_Mapping[str, ContextValue]] = ..., priority: _Optional[float] = ..., answers_wanted: _Optional[int] = ...) -> None: ...

class ContextValue(_message.Message):
    __slots__ = ("json", "tree", "recipe")
    JSON_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    json: str
    tree: _oracle_pb2.Tree
    recipe: Recipe
    def __init__(self, json: _Optional[str] = ..., tree: _Optional[_Union[_oracle_pb2.Tree, _Mapping]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("queries", "gold", "only", "never")
    class GoldEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class OnlyEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Names
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Names, _Mapping]] = ...) -> None: ...
    class NeverEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Names
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Names, _Mapping]] = ...) -> None: ...
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    GOLD_FIELD_NUMBER: _ClassVar[int]
    ONLY_FIELD_NUMBER: _ClassVar[int]
    NEVER_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    gold: _containers.ScalarMap[str, str]
    only: _containers.MessageMap[str, Names]
    never: _containers.MessageMap[str, Names]
    def __init__(self, queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., gold: _Optional[_Mapping[str, str]] = ..., only: _Optional[_Mapping[str, Names]] = ..., never: _Optional[_Mapping[str, Names]] = ...) -> None: ...

class Names(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("query", "gold", "only", "never")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    GOLD_FIELD_NUMBER: _ClassVar[int]
    ONLY_FIELD_NUMBER: _ClassVar[int]
    NEVER_FIELD_NUMBER: _ClassVar[int]
    query: Query
    gold: str
    only: _containers.RepeatedScalarFieldContainer[str]
    never: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, query: _Optional[_Union[Query, _Mapping]] = ..., gold: _Optional[str] = ..., only: _Optional[_Iterable[str]] = ..., never: _Optional[_Iterable[str]] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("annotator", "n", "kinds")
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    annotator: str
    n: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, annotator: _Optional[str] = ..., n: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class LeaseReply(_message.Message):
    __slots__ = ("assignments",)
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    assignments: _containers.RepeatedCompositeFieldContainer[Assignment]
    def __init__(self, assignments: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("id", "kind", "query", "view", "ends_at", "began_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ENDS_AT_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    query: Query
    view: str
    ends_at: float
    began_at: float
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., query: _Optional[_Union[Query, _Mapping]] = ..., view: _Optional[str] = ..., ends_at: _Optional[float] = ..., began_at: _Optional[float] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("annotator", "question", "json", "value", "cannot_tell", "started_at", "reason")
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CANNOT_TELL_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    annotator: str
    question: str
    json: str
    value: _oracle_pb2.Tensor
    cannot_tell: bool
    started_at: float
    reason: str
    def __init__(self, annotator: _Optional[str] = ..., question: _Optional[str] = ..., json: _Optional[str] = ..., value: _Optional[_Union[_oracle_pb2.Tensor, _Mapping]] = ..., cannot_tell: _Optional[bool] = ..., started_at: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class AnswerReply(_message.Message):
    __slots__ = ("outcome", "event")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    event: str
    def __init__(self, outcome: _Optional[str] = ..., event: _Optional[str] = ...) -> None: ...

class AnswersRequest(_message.Message):
    __slots__ = ("cursor", "follow")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    follow: bool
    def __init__(self, cursor: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class AnswersReply(_message.Message):
    __slots__ = ("answers", "cursor")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answered]
    cursor: str
    def __init__(self, answers: _Optional[_Iterable[_Union[Answered, _Mapping]]] = ..., cursor: _Optional[str] = ...) -> None: ...

class Answered(_message.Message):
    __slots__ = ("event", "query_id", "value", "annotator", "started_at", "answered_at", "side_shown", "cannot_tell", "undone")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_AT_FIELD_NUMBER: _ClassVar[int]
    SIDE_SHOWN_FIELD_NUMBER: _ClassVar[int]
    CANNOT_TELL_FIELD_NUMBER: _ClassVar[int]
    UNDONE_FIELD_NUMBER: _ClassVar[int]
    event: str
    query_id: str
    value: _oracle_pb2.Tensor
    annotator: str
    started_at: float
    answered_at: float
    side_shown: _containers.RepeatedScalarFieldContainer[int]
    cannot_tell: bool
    undone: bool
    def __init__(self, event: _Optional[str] = ..., query_id: _Optional[str] = ..., value: _Optional[_Union[_oracle_pb2.Tensor, _Mapping]] = ..., annotator: _Optional[str] = ..., started_at: _Optional[float] = ..., answered_at: _Optional[float] = ..., side_shown: _Optional[_Iterable[int]] = ..., cannot_tell: _Optional[bool] = ..., undone: _Optional[bool] = ...) -> None: ...

class BeatRequest(_message.Message):
    __slots__ = ("annotator", "questions")
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    annotator: str
    questions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, annotator: _Optional[str] = ..., questions: _Optional[_Iterable[str]] = ...) -> None: ...

class BeatReply(_message.Message):
    __slots__ = ("kept",)
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kept: _Optional[_Iterable[str]] = ...) -> None: ...

class UndoRequest(_message.Message):
    __slots__ = ("annotator", "question")
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    annotator: str
    question: str
    def __init__(self, annotator: _Optional[str] = ..., question: _Optional[str] = ...) -> None: ...

class UndoReply(_message.Message):
    __slots__ = ("undone",)
    UNDONE_FIELD_NUMBER: _ClassVar[int]
    undone: bool
    def __init__(self, undone: _Optional[bool] = ...) -> None: ...

class GiveBackRequest(_message.Message):
    __slots__ = ("annotator", "question", "broken")
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    annotator: str
    question: str
    broken: str
    def __init__(self, annotator: _Optional[str] = ..., question: _Optional[str] = ..., broken: _Optional[str] = ...) -> None: ...

class GiveBackReply(_message.Message):
    __slots__ = ("given_back",)
    GIVEN_BACK_FIELD_NUMBER: _ClassVar[int]
    given_back: bool
    def __init__(self, given_back: _Optional[bool] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("ids", "kind")
    IDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ...) -> None: ...

class WithdrawReply(_message.Message):
    __slots__ = ("withdrawn",)
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    withdrawn: int
    def __init__(self, withdrawn: _Optional[int] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("counts", "depth", "oldest_wait_s", "waiting", "fault")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class DepthEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.ScalarMap[str, int]
    depth: _containers.ScalarMap[str, int]
    oldest_wait_s: float
    waiting: int
    fault: str
    def __init__(self, counts: _Optional[_Mapping[str, int]] = ..., depth: _Optional[_Mapping[str, int]] = ..., oldest_wait_s: _Optional[float] = ..., waiting: _Optional[int] = ..., fault: _Optional[str] = ...) -> None: ...
