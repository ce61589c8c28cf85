"""Former place of these names, until all modules import from the new one."""
# ruff: noqa

from famix.data.registration import (
    Roles,
    domain_groups,
    domain_of,
    is_source,
    require_known_sources,
    roles_of,
    short_names,
)
