"""The lead's page, a tab a file. What people or models wrote goes into plain text cells only, never into markup."""
