"""What every part shares: settings, specs, errors, storage, ids and logging. Imports nothing else of Hone."""
