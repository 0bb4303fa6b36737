-- request_ticket(model) -> 1 if a ticket was missing, else 0
return push_ticket(ARGV[2]) and 1 or 0
