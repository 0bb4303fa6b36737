-- callback_release(id, claim, ...)
-- Claims that nobody tried.
allow_when_full()

for i = 2, #ARGV, 2 do
  release(ARGV[i], ARGV[i + 1])
end
