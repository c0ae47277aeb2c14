<?php
// One session of php-memcached: php.php HOST:PORT QUEUE session|hold.
[$_, $address, $queue, $mode] = $argv;
[$host, $port] = explode(':', $address);
$client = new Memcached();
$client->setOption(Memcached::OPT_POLL_TIMEOUT, 20000);
$client->setOption(Memcached::OPT_RECV_TIMEOUT, 20000000);
$client->addServer($host, (int) $port);

function is($got, $expected, string $what): void
{
    if ($got !== $expected) {
        fwrite(STDERR, "$what: " . var_export($got, true) . "\n");
        exit(1);
    }
}

function get(string $key, $expected): void
{
    global $client;
    is($client->get($key), $expected, $key);
}

if ($mode === 'hold') {
    get("{$queue}_held/open/t=10000", 'held');
    sleep(600);
}
$binary = implode('', array_map('chr', range(0, 255)));
get($queue, false);
foreach (['one', 'two', $binary] as $data) {
    is($client->set($queue, $data), true, 'set');
}
get("$queue/open", 'one');
get("$queue/abort", false);
get("$queue/open/t=1000", 'one');
get("$queue/close/open", 'two');
get("$queue/close", false);
get($queue, $binary);
get("$queue/t=50", false);
get("{$queue}_late/t=20000", 'late');
// Types, and compression of what is long, travel by flags.
foreach ([['n' => 1], 17, true, str_repeat('long ', 10000)] as $data) {
    is($client->set($queue, $data), true, 'set');
    get($queue, $data);
}
is($client->delete($queue), true, 'delete');
is($client->flush(), true, 'flush');
is(array_keys($client->getVersion()), [$address], 'version');
is(is_array($client->getStats()), true, 'stats');
