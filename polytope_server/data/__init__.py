"""The data of the embedded back-ends as an operator handles them: status, backup, restore, upgrade."""
