# One session of Perl's Cache::Memcached: perl.pl HOST:PORT QUEUE session|hold.
use strict;
use warnings;
use Cache::Memcached;

my ($address, $queue, $mode) = @ARGV;
my $client = Cache::Memcached->new({ servers => [$address], select_timeout => 20 });

sub is {
    my ($got, $expected, $what) = @_;
    my $same = defined $got ? defined $expected && $got eq $expected : !defined $expected;
    die "$what: got " . ($got // 'nothing') . "\n" unless $same;
}

sub get { my ($key, $expected) = @_; is(scalar $client->get($key), $expected, $key) }

if ($mode eq 'hold') {
    get("${queue}_held/open/t=10000", 'held');
    sleep 600;
}
my $binary = join '', map { chr } 0 .. 255;
get($queue, undef);
for my $data ('one', 'two', $binary) { die "set\n" unless $client->set($queue, $data) }
get("$queue/open", 'one');
get("$queue/abort", undef);
get("$queue/open/t=1000", 'one');
get("$queue/close/open", 'two');
get("$queue/close", undef);
get($queue, $binary);
get("$queue/t=50", undef);
get("${queue}_late/t=20000", 'late');
die "set\n" unless $client->set($queue, { n => 1 });
is($client->get($queue)->{n}, 1, 'a structure, by its flags');
die "delete\n" unless $client->delete($queue);
die "flush_all\n" unless $client->flush_all;
die "stats\n" unless defined $client->stats('misc')->{hosts}{$address}{misc}{curr_items};
