"""Who may ask the service: API keys, their scopes and tenants, and what each route asks for."""
