"""The database: tables, sessions, and the lifecycle of a job. Imports core."""
