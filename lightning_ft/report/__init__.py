"""The report of finished runs: one page that tells what was trained, what it brought, and what to do next."""
