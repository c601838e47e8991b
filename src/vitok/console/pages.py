"""Pages (being written)."""


def routes(service):
    return []
