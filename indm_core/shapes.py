"""Tensor shapes in signatures: `Float[Tensor, "b c h w"]` reads as a float tensor with these four axes.

They are jaxtyping's where it is installed (the tests check them there) and mean nothing where it is not: every module
has `from __future__ import annotations`, so that an annotation is a string that nobody needs to evaluate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Bool", "Float", "Int", "Shaped"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped
    except ImportError:

        class Float:
            """Stands in for jaxtyping's class: `Float[Tensor, shape]` is `Tensor`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Int = Bool = Shaped = Float
