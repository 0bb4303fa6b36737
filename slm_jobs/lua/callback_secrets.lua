-- callback_secrets(key, a secret that nobody knows yet, ms for which the old ones sign on if it is to
--                  replace them) -> {secret, ms at which it expires or '', ...}, the newest first
allow_when_full()
return secrets_of(ARGV[2], ARGV[3], tonumber(ARGV[4]))
