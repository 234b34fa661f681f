"""How a data set is to be split among clients; :mod:`perfit.partition` splits it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perfit.sections import Section


class Split(Section):
    """How a data set is split among clients.

    Args:
        scheme: One of the functions of :mod:`perfit.partition`.
        clients: How many; for ``user``, where None is for all users, those with the most records.
        label: The field with a record's category or user, which must be text.
        categories_per_client: For ``category``.
        alpha: For ``dirichlet``.
        minimum: Records of a client: ``dirichlet`` fills clients up to it, ``user`` leaves out users with fewer.
    """

    scheme: Literal["iid", "category", "dirichlet", "user"] = "iid"
    clients: int | None = Field(default=None, ge=1)
    label: str = "category"
    categories_per_client: int = Field(default=1, ge=1)
    alpha: float = Field(default=0.5, gt=0)
    minimum: int = Field(default=2, ge=2)
