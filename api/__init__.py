"""The HTTP API: routes, schemas, errors as JSON, the relay and the reaper. Imports core and models, never torch."""
