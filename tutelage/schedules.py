"""Schedules: a number for each round, from a constant, a named rule or an expression in the round `i`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors import ConfigError


def schedule(spec: Any) -> Callable[[int], float]:
    """β as a function of the round i = 0, 1, 2, ...

    A number; `constant(0.5)` or {"constant": 0.5}; `linear(15)`: 1 − i/15, at least 0; `exponential(0.5)`:
    0.5**i; or any arithmetic expression in `i` with `min`, `max` and `exp`, such as "i == 0". Raises
    ConfigError where the expression cannot be understood, or is not in [0, 1] at a round asked for.
    """
    text = _as_text(spec)
    compute = _compiled(text)

    def beta(i: int) -> float:
        try:
            value = float(compute(i))
        except (ArithmeticError, TypeError) as error:
            raise ConfigError(f"method.beta: {text!r} has no value at i = {i}: {error}") from None
        if not 0 <= value <= 1:
            raise ConfigError(f"method.beta: {text!r} is {value:g} at i = {i}; probabilities lie in [0, 1]")
        return value

    beta(0)
    return beta


def _as_text(spec: Any) -> str:
    """A schedule as an expression: {"linear": 15} -> "linear(15)", 0.5 -> "0.5"."""
    if isinstance(spec, Mapping) and len(spec) == 1:
        (name, argument), *_ = spec.items()
        return f"{name}({argument})"
    if isinstance(spec, str | int | float):
        return str(spec)
    raise ConfigError(f"method.beta: expected a number or an expression in i, got {spec!r}")


OPERATORS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "exp": math.exp}
SCHEDULES: Mapping[str, Callable[[int, float], float]] = {
    "constant": lambda i, value: value,
    "linear": lambda i, rounds: max(0.0, 1 - i / rounds),
    "exponential": lambda i, base: base**i,
}


def _compiled(text: str) -> Callable[[int], Any]:
    """The expression as a function of i; only what is named above is understood, nothing is evaluated."""
    try:
        body = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"method.beta: {text!r} is not an expression: {error.msg}") from None
    return _node(body, text)


def _node(node: ast.expr, text: str) -> Callable[[int], Any]:
    """A node of the expression as a function of i."""
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return lambda i: value
        case ast.Name(id="i"):
            return lambda i: i
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return _apply(OPERATORS[type(op)], [_node(operand, text)])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _apply(OPERATORS[type(op)], [_node(left, text), _node(right, text)])
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return _apply(OPERATORS[type(op)], [_node(left, text), _node(right, text)])
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _apply(FUNCTIONS[name], [_node(argument, text) for argument in arguments])
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in SCHEDULES:
            return _apply(SCHEDULES[name], [lambda i: i, _node(argument, text)])
    known = ", ".join(["i", *FUNCTIONS, *(f"{name}(x)" for name in SCHEDULES)])
    raise ConfigError(
        f"method.beta: cannot use {ast.unparse(node)!r} in {text!r}; known: numbers, operators, {known}"
    )


def _apply(function: Callable[..., Any], arguments: list[Callable[[int], Any]]) -> Callable[[int], Any]:
    return lambda i: function(*(argument(i) for argument in arguments))
