"""``sslmed reproduce``: the cells of a published table, and ours beside theirs."""
